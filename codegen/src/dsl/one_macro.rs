//! A file of declarations: how long it may be, and the one macro that it holds.

use proc_macro2::TokenStream;
use syn::Result;

/// Most of a declaration is its documentation.
pub(super) const MAX_BYTES: usize = 256 << 10;

/// The one `name! { … }` of a file, which is all that it holds.
pub(super) fn the_macro(tokens: TokenStream, name: &str, file: &str) -> Result<Option<syn::Macro>> {
    let mut found = None;
    for item in syn::parse2::<syn::File>(tokens)?.items {
        match item {
            syn::Item::Macro(item) if item.mac.path.is_ident(name) => {
                if found.is_some() {
                    let message = match name {
                        "kernel" => "a second kernel: give it a folder of its own",
                        _ => "a second one in a file: join the two",
                    };
                    return Err(syn::Error::new_spanned(&item.mac.path, message));
                }
                found = Some(item.mac);
            }
            other => {
                let message = format!("{file} holds one `{name}! {{ … }}` and nothing else");
                return Err(syn::Error::new_spanned(other, message));
            }
        }
    }
    Ok(found)
}
