"""Where parasample meets diffusers: reading schedulers, wrapping pipelines. The only place that imports it."""
