"""The three stages and prediction, as functions: options in, a record out."""
