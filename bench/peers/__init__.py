"""Other systems, measured beside Potluck; see README.md."""
