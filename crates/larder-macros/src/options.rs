//! What stands in the parentheses of `#[cached(..)]`.

use std::time::Duration;

use proc_macro2::{Span, TokenStream, TokenTree};
use syn::ext::IdentExt;
use syn::parse::{Parse, ParseStream};
use syn::punctuated::Punctuated;
use syn::{Expr, ExprLit, Ident, Lit, LitInt, LitStr, Token, bracketed};

use crate::near;
use crate::template::Template;

/// All options, as they stand in the docs.
const OPTIONS: [&str; 10] = [
    "key",
    "ttl",
    "grace",
    "negative",
    "tags",
    "ignore",
    "cache",
    "version",
    "max_entries",
    "associated",
];

/// The options of one function.
#[derive(Default)]
pub(crate) struct Options {
    pub(crate) key: Option<KeyOption>,
    pub(crate) ttl: Option<Spanned<Ttl>>,
    pub(crate) grace: Option<Spanned<Duration>>,
    pub(crate) negative: Option<Spanned<Duration>>,
    pub(crate) tags: Vec<Template>,
    pub(crate) ignore: Vec<Ident>,
    pub(crate) cache: Option<Expr>,
    pub(crate) version: Option<Spanned<u32>>,
    pub(crate) max_entries: Option<Spanned<u64>>,
    pub(crate) associated: bool,
}

/// How the key is made.
pub(crate) enum KeyOption {
    /// `key = "user:{id}"`.
    Template(Template),
    /// `key = id`: of whatever type the keys of the cache are.
    Expression(Expr),
}

/// How long a value is fresh.
#[derive(Clone, Copy)]
pub(crate) enum Ttl {
    For(Duration),
    Ever,
}

/// A value and where it stands.
pub(crate) struct Spanned<T> {
    pub(crate) value: T,
    pub(crate) span: Span,
}

impl Parse for Options {
    fn parse(input: ParseStream<'_>) -> syn::Result<Self> {
        let mut options = Self::default();
        let mut seen: Vec<Ident> = Vec::new();
        while !input.is_empty() {
            let name = input.call(Ident::parse_any)?;
            if let Some(before) = seen.iter().find(|before| **before == name) {
                return Err(syn::Error::new(
                    name.span(),
                    format!("`{before}` is given twice"),
                ));
            }
            options.take(&name, input)?;
            seen.push(name);
            if !input.is_empty() {
                input.parse::<Token![,]>()?;
            }
        }
        options.check()?;
        Ok(options)
    }
}

impl Options {
    fn take(&mut self, name: &Ident, input: ParseStream<'_>) -> syn::Result<()> {
        let option = name.to_string();
        if option == "associated" {
            self.associated = true;
            return Ok(());
        }
        if !OPTIONS.contains(&option.as_str()) {
            let near = near::offer(&option, &OPTIONS.map(String::from));
            let message = format!("`#[cached]` has no option `{option}`{near}");
            return Err(syn::Error::new(name.span(), message));
        }
        input.parse::<Token![=]>()?;
        match option.as_str() {
            "key" => self.key = Some(key(input.parse()?)?),
            "ttl" => self.ttl = Some(ttl(input)?),
            "grace" => self.grace = Some(duration("grace", input)?),
            "negative" => self.negative = Some(duration("negative", input)?),
            "tags" => self.tags = tags(input)?,
            "ignore" => self.ignore = ignored(input)?,
            "cache" => self.cache = Some(input.parse()?),
            "version" => self.version = Some(number("version", 2, input)?),
            _ => self.max_entries = Some(number("max_entries", 10_000, input)?),
        }
        Ok(())
    }

    /// Options that have no meaning together.
    fn check(&self) -> syn::Result<()> {
        let refuse = |span, message: &str| Err(syn::Error::new(span, message));
        if self.cache.is_some() {
            if let Some(entries) = &self.max_entries {
                let mend = "`max_entries` belongs to the cache that `cache = ..` names: say `.capacity(..)` where it is built";
                return refuse(entries.span, mend);
            }
            if let Some(Spanned {
                value: Ttl::Ever,
                span,
            }) = &self.ttl
            {
                let mend = "\"none\" belongs to the cache that `cache = ..` names: say `.no_ttl()` where it is built";
                return refuse(*span, mend);
            }
        }
        match (&self.key, &self.cache, &self.version) {
            (Some(KeyOption::Expression(key)), None, _) => {
                let mend = "a key of a type of your own belongs to a cache of your own: name it by `cache = ..`, or write a template such as `key = \"user:{id}\"`";
                Err(syn::Error::new_spanned(key, mend))
            }
            (Some(KeyOption::Expression(_)), _, Some(version)) => {
                let mend = "a key of a type of your own has no room for a version: say `.version(..)` where the cache is built";
                refuse(version.span, mend)
            }
            _ => Ok(()),
        }
    }
}

fn key(expression: Expr) -> syn::Result<KeyOption> {
    match expression {
        Expr::Lit(ExprLit {
            lit: Lit::Str(text),
            ..
        }) => Template::of_key(text).map(KeyOption::Template),
        Expr::Lit(other) => Err(syn::Error::new_spanned(
            other,
            "this key is the same for every call; write a template such as `key = \"user:{id}\"`",
        )),
        expression => Ok(KeyOption::Expression(expression)),
    }
}

fn ttl(input: ParseStream<'_>) -> syn::Result<Spanned<Ttl>> {
    let is_none = |text: LitStr| text.value() == "none";
    if input.fork().parse::<LitStr>().is_ok_and(is_none) {
        let span = input.parse::<LitStr>()?.span();
        let value = Ttl::Ever;
        return Ok(Spanned { value, span });
    }
    let Spanned { value, span } = duration("ttl", input)?;
    if value.is_zero() {
        return Err(syn::Error::new(
            span,
            "a ttl of zero keeps nothing: give a longer one, or leave `#[cached]` out",
        ));
    }
    let value = Ttl::For(value);
    Ok(Spanned { value, span })
}

fn duration(option: &str, input: ParseStream<'_>) -> syn::Result<Spanned<Duration>> {
    let value: Expr = input.parse()?;
    let Expr::Lit(ExprLit {
        lit: Lit::Str(text),
        ..
    }) = value
    else {
        return Err(syn::Error::new_spanned(
            value,
            format!(
                "`{option}` is a duration with its unit, as text: write for example `{option} = \"1h 30m\"`"
            ),
        ));
    };
    let span = text.span();
    let text = text.value();
    let value = humantime::parse_duration(&text).map_err(|cause| {
        let message = format!(
            "`{text}` is not a duration ({cause}); write for example \"1h 30m\" or \"250ms\""
        );
        syn::Error::new(span, message)
    })?;
    Ok(Spanned { value, span })
}

fn tags(input: ParseStream<'_>) -> syn::Result<Vec<Template>> {
    let list;
    if !input.peek(syn::token::Bracket) {
        return Err(input
            .error("`tags` is a list: write for example `tags = [\"users\", \"org:{org_id}\"]`"));
    }
    bracketed!(list in input);
    let tags = Punctuated::<LitStr, Token![,]>::parse_terminated(&list)?;
    tags.into_iter().map(Template::of_tag).collect()
}

fn ignored(input: ParseStream<'_>) -> syn::Result<Vec<Ident>> {
    let list;
    if !input.peek(syn::token::Bracket) {
        return Err(
            input.error("`ignore` is a list of arguments: write for example `ignore = [db]`")
        );
    }
    bracketed!(list in input);
    let names = Punctuated::<Ident, Token![,]>::parse_terminated_with(&list, Ident::parse_any)?;
    Ok(names.into_iter().collect())
}

/// A number that is at least one.
fn number<T>(option: &str, example: u64, input: ParseStream<'_>) -> syn::Result<Spanned<T>>
where
    T: std::str::FromStr + PartialOrd + From<u8>,
    T::Err: std::fmt::Display,
{
    let value: Expr = input.parse()?;
    let literal = match &value {
        Expr::Lit(ExprLit {
            lit: Lit::Int(number),
            ..
        }) => number.base10_parse::<T>().ok(),
        _ => None,
    };
    let at_least_one = literal.filter(|number| *number >= T::from(1));
    match at_least_one {
        Some(number) => Ok(Spanned {
            value: number,
            span: span_of(&value),
        }),
        None => Err(syn::Error::new_spanned(
            value,
            format!(
                "`{option}` is a whole number, 1 or more: write for example `{option} = {example}`"
            ),
        )),
    }
}

fn span_of(value: &Expr) -> Span {
    match value {
        Expr::Lit(ExprLit {
            lit: Lit::Int(number),
            ..
        }) => LitInt::span(number),
        _ => Span::call_site(),
    }
}

/// Whether a name stands somewhere in `tokens`, other than as a field or a method of something.
pub(crate) fn mentions(tokens: TokenStream, name: &str) -> bool {
    let mut is_member = false;
    tokens.into_iter().any(|token| match token {
        TokenTree::Ident(ident) => !std::mem::take(&mut is_member) && ident == name,
        TokenTree::Group(group) => mentions(group.stream(), name),
        TokenTree::Punct(punct) => {
            is_member = punct.as_char() == '.';
            false
        }
        TokenTree::Literal(_) => false,
    })
}
