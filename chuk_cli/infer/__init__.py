"""What `chuk infer` does beside one answer and a conversation."""
