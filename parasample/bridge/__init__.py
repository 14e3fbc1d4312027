"""Where parasample meets diffusers: reading schedulers, wrapping pipelines. The only importer of it."""
