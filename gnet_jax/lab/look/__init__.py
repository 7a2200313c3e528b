"""Show what a network sees and computes: images that excite it, attribution, layers, replays."""
