"""What a training command will do on devices that are not here: compiled for them, counted, estimated."""
