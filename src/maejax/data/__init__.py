"""Images on disk -> uint8 batches: sources, decoding, augmentation, order, packing."""
