"""Teacher, students, and the store they are kept in."""
