"""From a RenderPlan to an MP4 on disk. Knows no HTTP and no queue."""
