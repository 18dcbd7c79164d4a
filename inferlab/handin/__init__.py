"""What a student runs before handing in, and what makes a damaged notebook whole again.

It travels in the bundle, so it imports nothing of ours that is left out of bundles.
"""
