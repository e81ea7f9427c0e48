"""What a training step is made of: losses, task, optimizer, checkpoint, tracking."""
