"""What has no better room."""
