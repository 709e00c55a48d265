"""Networks published by others, with their weights' names."""
