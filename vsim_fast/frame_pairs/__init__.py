"""Two frames, many pairs of frames, and whole videos frame by frame."""
