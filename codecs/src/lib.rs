//! Page codecs: zero, raw, lz4, zstd, brotli behind one trait.
