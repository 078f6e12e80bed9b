"""From a prompt to an answer: requests, the batch they run in, contrasts, sampling, caches, and text."""
