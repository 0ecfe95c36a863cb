"""Hold the delayed messages that a throttled queue refuses, and send each when it is due."""
