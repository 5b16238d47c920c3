//! An XDP program that passes every packet, as an object file for `ip link set DEVICE xdp obj FILE`.
//!
//! It has to be on the other side of each uplink: the kernel's veth wakes the receiver of what XDP sends back
//! (XDP_TX) only where that has a program of its own, see `veth_xdp_flush` in drivers/net/veth.c (Linux 6.18).
//! Two instructions are not worth a compiler, so the file is written here by hand.

/// `r0 = XDP_PASS; exit`.
const PROGRAM: [u8; 16] = [0xb7, 0, 0, 0, 2, 0, 0, 0, 0x95, 0, 0, 0, 0, 0, 0, 0];
const LICENSE: &[u8] = b"GPL\0";
/// Names, each ended by a zero byte; offsets into it follow.
const NAMES: &[u8] = b"\0.strtab\0xdp\0license\0.symtab\0pass\0";
const NAME_STRTAB: u32 = 1;
const NAME_XDP: u32 = 9;
const NAME_LICENSE: u32 = 13;
const NAME_SYMTAB: u32 = 21;
const NAME_PASS: u32 = 29;

const HEADER_BYTES: usize = 64;
const SECTION_HEADER_BYTES: u16 = 64;
const SYMBOL_BYTES: u64 = 24;
const MACHINE_BPF: u16 = 247;

/// The object file: an ELF header, the contents of four sections, and their headers.
pub fn object() -> Vec<u8> {
    // Name, type, flags, contents; linked section, first global symbol, entry size.
    type Section<'a> = (u32, u32, u64, &'a [u8], (u32, u32, u64));

    let mut symbols = vec![0; SYMBOL_BYTES as usize];
    symbols.extend(NAME_PASS.to_le_bytes());
    symbols.extend([0x12, 0, 2, 0]); // a global function in section 2
    symbols.extend(0u64.to_le_bytes());
    symbols.extend((PROGRAM.len() as u64).to_le_bytes());

    let sections: [Section<'_>; 4] = [
        (NAME_STRTAB, 3, 0, NAMES, (0, 0, 0)),
        (NAME_XDP, 1, 6, &PROGRAM, (0, 0, 0)),
        (NAME_LICENSE, 1, 3, LICENSE, (0, 0, 0)),
        (NAME_SYMTAB, 2, 0, &symbols, (1, 1, SYMBOL_BYTES)),
    ];
    let mut contents = Vec::new();
    let mut headers = vec![0; usize::from(SECTION_HEADER_BYTES)];
    for (name, kind, flags, bytes, (link, info, entry)) in sections {
        contents.resize(contents.len().next_multiple_of(8), 0);
        let offset = (HEADER_BYTES + contents.len()) as u64;
        contents.extend(bytes);
        headers.extend(name.to_le_bytes());
        headers.extend(kind.to_le_bytes());
        for word in [flags, 0, offset, bytes.len() as u64] {
            headers.extend(word.to_le_bytes());
        }
        headers.extend(link.to_le_bytes());
        headers.extend(info.to_le_bytes());
        for word in [8, entry] {
            headers.extend(word.to_le_bytes());
        }
    }
    contents.resize(contents.len().next_multiple_of(8), 0);

    let mut file = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    file.extend(1u16.to_le_bytes()); // relocatable
    file.extend(MACHINE_BPF.to_le_bytes());
    file.extend(1u32.to_le_bytes());
    for word in [0, 0, (HEADER_BYTES + contents.len()) as u64] {
        file.extend(u64::to_le_bytes(word));
    }
    file.extend(0u32.to_le_bytes());
    for half in [
        HEADER_BYTES as u16,
        0,
        0,
        SECTION_HEADER_BYTES,
        sections.len() as u16 + 1,
        1,
    ] {
        file.extend(half.to_le_bytes());
    }
    file.extend(contents);
    file.extend(headers);
    file
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_begin_where_the_headers_say() {
        let name = |at: u32| {
            let rest = &NAMES[at as usize..];
            &rest[..rest.iter().position(|byte| *byte == 0).expect("an end")]
        };
        assert_eq!(name(NAME_STRTAB), b".strtab");
        assert_eq!(name(NAME_XDP), b"xdp");
        assert_eq!(name(NAME_LICENSE), b"license");
        assert_eq!(name(NAME_SYMTAB), b".symtab");
        assert_eq!(name(NAME_PASS), b"pass");
    }

    #[test]
    fn the_header_leads_to_the_section_headers() {
        let file = object();
        let at = u64::from_le_bytes(file[40..48].try_into().expect("eight bytes"));
        assert_eq!(file.len() as u64 - at, 5 * u64::from(SECTION_HEADER_BYTES));
    }
}
