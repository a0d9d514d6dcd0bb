"""The components that everybody expects: plain objectives, small networks, common measures, loaders for what others trained."""
