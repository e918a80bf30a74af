"""Why a model says what it says: heat maps, and the training images most like an image."""
