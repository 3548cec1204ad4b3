-- What was written lately waits in a list that every search reads through. It is to stay short: 64 kB, not 4 MB.
ALTER INDEX registry.object_search SET (gin_pending_list_limit = 64);
ALTER INDEX registry.object_tags SET (gin_pending_list_limit = 64);
