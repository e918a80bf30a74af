"""Heads on disk."""

from heads.files.current import MODEL, RECORD, load_head, save_head
