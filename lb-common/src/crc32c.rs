//! SCTP's checksum, CRC32c (RFC 9260 section 6.8), kept right without reading what it covers.
//!
//! A CRC is linear: of two packets of one length, the checksums differ by what the *difference* of the packets comes
//! to, with nothing added before or after. SCTP's checksum covers no addresses, so of a translated packet only the
//! ports differ, which are its first four bytes:
//!
//! ```text
//!   before  xor  after  =  old ports xor new ports │ 0 0 0 0 ... 0      (len bytes)
//! ```
//!
//! As a polynomial these four bytes are `d`, and the division that a CRC is leaves `d * x^(8 * len) mod P`: two
//! multiplications, whatever the length. Polynomials are kept with their bits reversed, as CRC32c is sent: the lowest
//! bit of a word is its highest power, `x^31`.

/// CRC32c's polynomial, without `x^32`.
const POLYNOMIAL: u32 = 0x82f6_3b78;
/// `x^0`.
const ONE: u32 = 1 << 31;

/// `x^(8 * n)` for the low byte of a length, and for its high byte.
static BY_LOW_BYTE: [u32; 256] = powers(times_x(ONE, 8));
static BY_HIGH_BYTE: [u32; 256] = powers(times_x(ONE, 8 * 256));

/// `a * x^n mod P`.
const fn times_x(a: u32, n: u32) -> u32 {
    let (mut product, mut i) = (a, 0u32);
    while i < n {
        product = (product >> 1) ^ (POLYNOMIAL & 0u32.wrapping_sub(product & 1));
        i = i.wrapping_add(1);
    }
    product
}

/// `a * b mod P`, without a branch for any bit.
#[inline(always)]
const fn multiply(a: u32, b: u32) -> u32 {
    let (mut product, mut power, mut rest, mut i) = (0u32, b, a, 0u32);
    while i < u32::BITS {
        product ^= power & 0u32.wrapping_sub(rest >> 31);
        power = times_x(power, 1);
        rest <<= 1;
        i = i.wrapping_add(1);
    }
    product
}

#[expect(clippy::indexing_slicing, reason = "evaluated by the compiler, which would refuse")]
const fn powers(base: u32) -> [u32; 256] {
    let (mut table, mut power, mut i) = ([0; 256], ONE, 0usize);
    while i < table.len() {
        table[i] = power;
        power = multiply(power, base);
        i = i.wrapping_add(1);
    }
    table
}

/// What the checksum of a packet changes by when its first four bytes do: `ports` is the bits in which these differ,
/// read as a number with the first byte lowest; `len` the packet's length in bytes, at most 65,535.
///
/// A function of its own, with tables instead of branches: the verifier walks through it once, and TCP and UDP never
/// come here.
#[inline(never)]
pub fn change(ports: u32, len: u32) -> u32 {
    let low = BY_LOW_BYTE.get((len & 0xff) as usize).copied().unwrap_or(ONE);
    let high = BY_HIGH_BYTE.get((len >> 8 & 0xff) as usize).copied().unwrap_or(ONE);
    multiply(multiply(ports, low), high)
}

/// The checksum, as it is sent, after a change of the first four bytes. One of zero has yet to be computed, by the
/// device that sends the packet, and is left so: senders hand such packets over with a zero there. (A checksum that
/// comes out as zero is taken for one of these, once in four thousand million packets, and the packet is lost.)
#[inline(always)]
pub fn after(check: [u8; 4], ports: u32, len: u32) -> [u8; 4] {
    let old = u32::from_le_bytes(check);
    if old == 0 {
        return check;
    }
    (old ^ change(ports, len)).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::sums::crc32c;

    #[test]
    fn powers_of_x_are_those_of_the_division() {
        // A one bit and then zeros: the remainder of the division, without what CRC32c adds before and after.
        let plain = |bytes: &[u8]| crc32c(bytes) ^ crc32c(&std::vec![0; bytes.len()]);
        for len in [4, 5, 12, 13, 255, 256, 257, 1500, 9000, 65_535] {
            let mut bytes = std::vec![0; len];
            bytes[3] = 0x80;
            assert_eq!(
                change(u32::from_le_bytes([0, 0, 0, 0x80]), len as u32),
                plain(&bytes),
                "{len}"
            );
        }
    }
}
