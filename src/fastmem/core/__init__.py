"""The method itself: split a model, memorize, contrast, decode. Knows token ids; knows no text and no data set."""
