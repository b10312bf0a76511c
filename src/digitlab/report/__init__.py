"""`digitlab report`: runs as one HTML page without external files."""
