"""The text that trains: read, drawn by shuffled epochs, dealt to the ranks."""
