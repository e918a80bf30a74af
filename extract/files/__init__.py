"""Files written whole and read with care: durable writes, archives, JSON, locks, object storage."""

from extract.files.archives import stored_entries
from extract.files.durable import (
    OWN_FILES,
    UNFINISHED,
    cache_directory,
    check_room,
    disk_full_as_fx_error,
    free_bytes,
    in_units,
    is_regular,
    open_regular,
    read_regular,
    refuse_holes,
    remove,
    reserve,
    sync,
    whole_file,
    why_not_written,
    write_whole,
)
from extract.files.json_records import LARGEST_RECORD, check_depth, decoded, read_record
from extract.files.locks import Lease, lock_folder
from extract.files.mirror import delete, fetched, kept_at, upload, working_folder
from extract.files.objects import (
    ObjectPath,
    ObjectStats,
    Place,
    StorageFailure,
    as_os_error,
    move,
    on_this_machine,
    place,
    remote,
    storage_of,
)
