"""The teacher, the students and the model store."""
