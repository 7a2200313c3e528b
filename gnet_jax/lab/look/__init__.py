"""Show what a network sees and computes: contact sheets, activations, replays."""
