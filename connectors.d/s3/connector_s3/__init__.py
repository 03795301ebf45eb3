"""Objects on S3, or on anything that speaks its protocol."""
