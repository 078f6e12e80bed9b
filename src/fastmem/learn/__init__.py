"""From a document to a memory: the objective, its optimization, and the memory it needs on the device."""
