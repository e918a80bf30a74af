"""The page that a comparison writes."""
