"""Reading scans as HU volumes and writing results as new objects."""
