//! Checksums over whole packets, word by word and bit by bit: nothing is shared with the incremental code under test.

use std::vec::Vec;

use crate::abi::Address;

/// Octets of an address, 4 or 16.
pub fn octets<A: Address>(address: &A) -> Vec<u8> {
    let all: Vec<u8> = address.words().into_iter().flat_map(u32::to_ne_bytes).collect();
    all[..size_of::<A>()].to_vec()
}

/// The internet checksum of bytes, as a number in host order.
pub fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = 0;
    for pair in bytes.chunks(2) {
        let word = u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]);
        sum += u32::from(word);
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// SCTP's checksum of bytes, bit by bit.
pub fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            let low = crc & 1;
            crc >>= 1;
            if low == 1 {
                crc ^= 0x82f6_3b78;
            }
        }
    }
    !crc
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_of_sctp_is_the_one_that_everybody_knows() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }
}
