"""What several commands share: how a model is named and opened, its images, fine-tuning, exported files."""
