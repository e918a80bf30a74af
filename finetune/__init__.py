"""Stage three: networks cut into blocks and trained from the fitted head."""
