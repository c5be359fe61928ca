"""Files of images, sounds and videos: reading them, and keeping what was decoded."""
