//! How a record is written: version, length, content, checksum. An entry proves itself.

use vmferry_protocol::ownership::Record;

const VERSION: u8 = 1;
/// Longest content accepted, in bytes; a record has about twenty.
const MAX_LEN: usize = 1024;
const HEAD: usize = 5;
const SUM: usize = 4;

/// The entry of `record`.
pub(crate) fn encode(record: &Record) -> Result<Vec<u8>, postcard::Error> {
    let body = postcard::to_stdvec(record)?;
    let mut out = Vec::with_capacity(HEAD + body.len() + SUM);
    out.push(VERSION);
    out.extend_from_slice(&(body.len() as u32).to_le_bytes());
    out.extend_from_slice(&body);
    out.extend_from_slice(&crc32fast::hash(&out).to_le_bytes());
    Ok(out)
}

/// The record of an entry, or what is wrong with it.
pub(crate) fn decode(bytes: &[u8]) -> Result<Record, &'static str> {
    let (&[version, a, b, c, d], rest) = bytes.split_first_chunk::<HEAD>().ok_or("too short")?;
    let len = u32::from_le_bytes([a, b, c, d]) as usize;
    if len > MAX_LEN || rest.len() != len + SUM {
        return Err("another length than it says");
    }
    let (checked, sum) = bytes.split_at(HEAD + len);
    if crc32fast::hash(checked).to_le_bytes() != sum {
        return Err("its checksum does not fit");
    }
    // Looked at only now: a version that was damaged is damage, not a newer writer.
    if version != VERSION {
        return Err("written by another version of vmferry");
    }
    match postcard::take_from_bytes(&checked[HEAD..]) {
        Ok((record, [])) => Ok(record),
        _ => Err("not a record"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmferry_protocol::ids::MigrationId;

    #[test]
    fn every_damaged_byte_is_noticed() {
        let record = Record::Relinquished(MigrationId([7; 16]));
        let good = encode(&record).unwrap();
        assert_eq!(decode(&good), Ok(record));
        for at in 0..good.len() {
            for bit in 0..8 {
                let mut bad = good.clone();
                bad[at] ^= 1 << bit;
                assert!(decode(&bad).is_err(), "byte {at} bit {bit}");
            }
            assert!(decode(&good[..at]).is_err());
        }
    }

    #[test]
    fn another_version_is_named_as_such() {
        let mut other = encode(&Record::Owner(MigrationId([7; 16]))).unwrap();
        other[0] = 2;
        let sum = other.len() - SUM;
        let crc = crc32fast::hash(&other[..sum]).to_le_bytes();
        other[sum..].copy_from_slice(&crc);
        assert_eq!(decode(&other), Err("written by another version of vmferry"));
    }
}
