"""The parts of a training: losses, task, optimizer, checkpoint, tracking."""
