//! `#[cached]`, as `larder` re-exports it with its feature `macros`. Depend on `larder`: what the
//! attribute writes are calls of it.
//!
//! In reading order: `options` reads what stands in the parentheses and `template` the templates
//! in it, `signature` reads the function, `plan` checks that both go together, and `expand` writes.
//! `uses` finds the arguments that an expression reads, and `near` offers what somebody may have meant.

#![forbid(unsafe_code)]

mod expand;
mod near;
mod options;
mod plan;
mod signature;
mod template;
mod uses;

use proc_macro::TokenStream;
use quote::quote;
use syn::{ItemFn, parse_macro_input};

use crate::options::Options;
use crate::plan::Plan;

#[doc = include_str!("cached.md")]
#[proc_macro_attribute]
pub fn cached(options: TokenStream, function: TokenStream) -> TokenStream {
    let function = parse_macro_input!(function as ItemFn);
    // The function stays, so that the mistake is not reported at each of its callers.
    let unchanged = quote!(#[allow(unused)] #function);
    let plan = syn::parse::<Options>(options).and_then(|options| Plan::new(options, function));
    match plan {
        Ok(plan) => expand::expand(&plan).into(),
        Err(error) => {
            let error = error.into_compile_error();
            quote!(#error #unchanged).into()
        }
    }
}
