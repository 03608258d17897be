"""Contract suites: checks that a technique, runtime, task or sampler keeps its promises; also for other packages."""
