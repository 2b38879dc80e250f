"""The machine that trains any of the models: optimizer, state, sharding, checkpoints, loop, logs."""
