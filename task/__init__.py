"""Learning tasks: models, the personal/global split, data sets, partitions. Knows no Flower and no radio."""
