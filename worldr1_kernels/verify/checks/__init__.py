"""What is run on a device, family by family: sizes 1, odd, across blocks and chunks, empty; every gradient."""
