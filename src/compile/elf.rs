//! The little of ELF it takes to see that a cubin is not cut short, and to find its machine code.

/// The section type of sections that take no place in the file.
const NO_BITS: u32 = 8;

/// Whether `bytes` is a 64-bit little-endian ELF file whose tables and sections all lie within it.
pub(super) fn is_whole(bytes: &[u8]) -> bool {
    ends(bytes).is_some_and(|end| end <= bytes.len() as u64)
}

/// The end of what lies last in the file; none when a header says what cannot be.
fn ends(bytes: &[u8]) -> Option<u64> {
    if bytes.get(..6)? != b"\x7fELF\x02\x01" {
        return None;
    }
    let table = |offset: usize, entry: usize, count: usize| {
        let (start, size, count) = (u64_at(bytes, offset)?, u16_at(bytes, entry)?, u16_at(bytes, count)?);
        Some((start, u64::from(size), u64::from(count)))
    };
    let (programs, program_size, program_count) = table(0x20, 0x36, 0x38)?;
    let (sections, section_size, section_count) = table(0x28, 0x3a, 0x3c)?;
    let mut end = programs.checked_add(program_size * program_count)?;
    end = end.max(sections.checked_add(section_size * section_count)?);
    for index in 0..section_count {
        let header = usize::try_from(sections.checked_add(index * section_size)?).ok()?;
        if u32_at(bytes, header.checked_add(0x04)?)? != NO_BITS {
            let (offset, size) = (u64_at(bytes, header + 0x18)?, u64_at(bytes, header + 0x20)?);
            end = end.max(offset.checked_add(size)?);
        }
    }
    Some(end)
}

/// The sections of a whole file whose names begin with `name`, in the file's order.
pub(super) fn sections<'a>(bytes: &'a [u8], name: &'a str) -> impl Iterator<Item = &'a [u8]> {
    let named = move |index: u64| {
        let (offset, size, at) = section(bytes, index)?;
        let (names, ..) = section(bytes, u16_at(bytes, 0x3e)?.into())?;
        let found = bytes.get(usize::try_from(names.checked_add(at)?).ok()?..)?;
        let start = usize::try_from(offset).ok()?;
        let section = bytes.get(start..start.checked_add(usize::try_from(size).ok()?)?)?;
        found.starts_with(name.as_bytes()).then_some(section)
    };
    let count = if is_whole(bytes) { u16_at(bytes, 0x3c).unwrap_or_default() } else { 0 };
    (0..u64::from(count)).filter_map(named)
}

/// A section's offset, its size, and where its name is.
fn section(bytes: &[u8], index: u64) -> Option<(u64, u64, u64)> {
    let (start, size) = (u64_at(bytes, 0x28)?, u64::from(u16_at(bytes, 0x3a)?));
    let header = usize::try_from(start.checked_add(index * size)?).ok()?;
    Some((u64_at(bytes, header + 0x18)?, u64_at(bytes, header + 0x20)?, u32_at(bytes, header)?.into()))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at.checked_add(2)?)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at.checked_add(8)?)?.try_into().ok()?))
}
