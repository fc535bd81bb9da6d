//! Reading the column `old` of a change row: packed bytes to values as text.

use super::encode::{DIGEST, NULL, TOO_LONG};
use pgrx::pg_sys;
use std::collections::HashMap;
use std::ffi::CStr;

/// A value as it was before the change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum OldValue {
    /// It was null.
    Null,
    /// Its text form, as the type's output function gives it.
    Text(String),
    /// It was too long to keep; the digest is all zero where even that was not
    /// taken, or where the type is not there any more.
    TooLong([u8; DIGEST]),
}

/// Splits the packed bytes into attribute number, type and content. Bytes that
/// end too early end the list.
fn split(mut packed: &[u8]) -> Vec<(i16, u32, Content<'_>)> {
    let mut values = Vec::new();
    while let Some((head, rest)) = packed.split_first_chunk::<8>() {
        let number = i16::from_le_bytes([head[0], head[1]]);
        let type_oid = u32::from_le_bytes([head[2], head[3], head[4], head[5]]);
        let length = u16::from_le_bytes([head[6], head[7]]);
        let size = match length {
            NULL => 0,
            TOO_LONG => DIGEST,
            length => usize::from(length),
        };
        let Some((content, rest)) = rest.split_at_checked(size) else {
            break;
        };
        let content = match length {
            NULL => Content::Null,
            TOO_LONG => Content::Digest(content.try_into().unwrap_or([0; DIGEST])),
            _ => Content::Bytes(content),
        };
        values.push((number, type_oid, content));
        packed = rest;
    }
    values
}

enum Content<'a> {
    Null,
    Digest([u8; DIGEST]),
    Bytes(&'a [u8]),
}

/// Old values by attribute number. Inside a transaction; output functions run,
/// which for types of extensions may raise SQL errors.
pub(crate) fn old_values(packed: &[u8]) -> Vec<(i16, OldValue)> {
    let mut types = HashMap::new();
    let decode = |(number, type_oid, content)| {
        let value = match content {
            Content::Null => OldValue::Null,
            Content::Digest(digest) => OldValue::TooLong(digest),
            Content::Bytes(bytes) => text_of(&mut types, type_oid, bytes),
        };
        (number, value)
    };
    split(packed).into_iter().map(decode).collect()
}

/// Representation and output function of a type, `None` if it is gone.
#[derive(Clone, Copy)]
struct TypeForm {
    length: i16,
    by_value: bool,
    output: pg_sys::Oid,
}

fn text_of(types: &mut HashMap<u32, Option<TypeForm>>, type_oid: u32, bytes: &[u8]) -> OldValue {
    let is_text = [pg_sys::TEXTOID, pg_sys::VARCHAROID, pg_sys::BPCHAROID]
        .iter()
        .any(|oid| oid.to_u32() == type_oid);
    if is_text {
        return OldValue::Text(server_text(bytes));
    }
    let form = *types
        .entry(type_oid)
        .or_insert_with(|| type_form(pg_sys::Oid::from(type_oid)));
    match form {
        Some(form) => OldValue::Text(output(form, bytes)),
        None => OldValue::TooLong([0; DIGEST]),
    }
}

/// Text of the database's encoding; what is not UTF-8 is replaced.
fn server_text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn type_form(type_oid: pg_sys::Oid) -> Option<TypeForm> {
    let (mut length, mut by_value, mut align) = (0, false, 0);
    let (mut output, mut variable) = (pg_sys::InvalidOid, false);
    // SAFETY: catalog look-ups; the first tells whether the type is there, as
    // the others raise an error if it is not.
    unsafe {
        if pg_sys::get_typ_typrelid(type_oid) == pg_sys::InvalidOid
            && !pg_sys::get_typisdefined(type_oid)
        {
            return None;
        }
        pg_sys::get_typlenbyvalalign(type_oid, &raw mut length, &raw mut by_value, &raw mut align);
        pg_sys::getTypeOutputInfo(type_oid, &raw mut output, &raw mut variable);
    }
    Some(TypeForm {
        length,
        by_value,
        output,
    })
}

/// Builds the datum again and calls the output function.
fn output(form: TypeForm, bytes: &[u8]) -> String {
    // SAFETY: the bytes are what the capture trigger took of a datum of this
    // type; the copy is aligned, and freed after the call.
    unsafe {
        let header = if form.length == -1 { 4 } else { 0 };
        let copy = pg_sys::palloc(bytes.len() + header).cast::<u8>();
        bytes
            .as_ptr()
            .copy_to_nonoverlapping(copy.add(header), bytes.len());
        if form.length == -1 {
            copy.cast::<u32>().write(((bytes.len() + 4) as u32) << 2);
        }
        let datum = if form.by_value {
            let mut word = [0; 8];
            let size = bytes.len().min(8);
            word[..size].copy_from_slice(&bytes[..size]);
            pg_sys::Datum::from(sign_extended(word, size))
        } else {
            pg_sys::Datum::from(copy)
        };
        let text = pg_sys::OidOutputFunctionCall(form.output, datum);
        let owned = server_text(CStr::from_ptr(text).to_bytes());
        pg_sys::pfree(text.cast());
        pg_sys::pfree(copy.cast());
        owned
    }
}

/// By-value datums are sign-extended to a word, as the server keeps them.
fn sign_extended(word: [u8; 8], size: usize) -> usize {
    let value = i64::from_le_bytes(word);
    let shift = 64 - 8 * size.clamp(1, 8) as u32;
    ((value << shift) >> shift) as usize
}
