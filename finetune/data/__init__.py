"""What a fine-tuning trains on: cached activations, augmented images, validation rows."""

from finetune.data.activations import Activations, TooLarge, Views, load_activations, pixels_of
from finetune.data.augmentation import AUGMENTATIONS, MIXES, mirrored, mixed, write_contact_sheet
from finetune.data.validation import VALIDATION_SHARE, set_validation_aside
