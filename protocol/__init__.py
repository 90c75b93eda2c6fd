"""What the server and the devices agree on: messages, names of records, random streams."""
