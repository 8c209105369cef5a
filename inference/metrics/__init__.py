"""Numbers about posteriors, on held-out images and exact (unrelaxed) latents."""
