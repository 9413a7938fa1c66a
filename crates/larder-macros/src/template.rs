//! Templates of keys and tags, as in `user:{id}`: the grammar of `larder::Template`, in which fields
//! are arguments.

use proc_macro2::Span;
use syn::{Ident, Index, LitStr, Member};

/// The longest template, in bytes, as everywhere in larder.
const LONGEST: usize = 4_096;

/// A template: parts that colons divide, and what they consist of.
pub(crate) struct Template {
    pub(crate) parts: Vec<Vec<Piece>>,
    pub(crate) literal: LitStr,
}

pub(crate) enum Piece {
    Text(String),
    Field(Field),
}

/// An argument, `self`, or something inside of one: `id`, `order.id`, `pair.0`.
pub(crate) struct Field {
    pub(crate) root: Ident,
    pub(crate) members: Vec<Member>,
}

impl Template {
    /// Reads the template of a key. Two fields that could run into each other are an error.
    pub(crate) fn of_key(literal: LitStr) -> syn::Result<Self> {
        let text = literal.value();
        let error = |why: String| {
            let message = format!("key template `{text}` {why}; write it like `user:{{id}}`");
            syn::Error::new(literal.span(), message)
        };
        let parts = parts(&text, literal.span()).map_err(error)?;
        for part in &parts {
            let mut fields = part.iter().filter_map(Piece::field);
            if let (Some(first), Some(second)) = (fields.next(), fields.next()) {
                return Err(syn::Error::new(
                    literal.span(),
                    format!(
                        "`{{{first}}}` and `{{{second}}}` stand in one part of the key, where two \
                         calls could come to the same text; put a colon between them"
                    ),
                ));
            }
            if part.is_empty() {
                return Err(error("has an empty part".to_owned()));
            }
        }
        Ok(Self { parts, literal })
    }

    /// Reads the template of a tag, whose colons mean nothing.
    pub(crate) fn of_tag(literal: LitStr) -> syn::Result<Self> {
        let text = literal.value();
        let error = |why: String| {
            let message = format!("tag `{text}` {why}; write it like `org:{{org_id}}`");
            syn::Error::new(literal.span(), message)
        };
        let parts = parts(&text, literal.span()).map_err(error)?;
        if text.is_empty() {
            return Err(error("is empty".to_owned()));
        }
        Ok(Self { parts, literal })
    }

    /// What is to be filled in.
    pub(crate) fn fields(&self) -> impl Iterator<Item = &Field> {
        self.parts.iter().flatten().filter_map(Piece::field)
    }
}

impl Piece {
    fn field(&self) -> Option<&Field> {
        match self {
            Self::Field(field) => Some(field),
            Self::Text(_) => None,
        }
    }
}

impl std::fmt::Display for Field {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.root)?;
        self.members.iter().try_for_each(|member| match member {
            Member::Named(name) => write!(f, ".{name}"),
            Member::Unnamed(index) => write!(f, ".{}", index.index),
        })
    }
}

/// Takes a template apart. The error says what is wrong with it, without a subject.
fn parts(text: &str, span: Span) -> Result<Vec<Vec<Piece>>, String> {
    if text.len() > LONGEST {
        return Err(format!("is longer than {LONGEST} bytes"));
    }
    let (mut parts, mut part, mut plain) = (Vec::new(), Vec::new(), String::new());
    let mut letters = text.chars().peekable();
    while let Some(letter) = letters.next() {
        match letter {
            '{' | '}' if letters.next_if_eq(&letter).is_some() => plain.push(letter),
            '}' => return Err("closes a brace that is not opened; write `}}` for a brace".into()),
            '{' => {
                let name: String = letters.by_ref().take_while(|next| *next != '}').collect();
                if !text_closes(text, &name) {
                    return Err("opens a brace that is not closed; write `{{` for a brace".into());
                }
                end_text(&mut plain, &mut part);
                part.push(Piece::Field(field(&name, span)?));
            }
            ':' => {
                end_text(&mut plain, &mut part);
                parts.push(std::mem::take(&mut part));
            }
            other => plain.push(other),
        }
    }
    end_text(&mut plain, &mut part);
    parts.push(part);
    Ok(parts)
}

/// Whether the field of that name is closed, and not just what is left of the text.
fn text_closes(text: &str, name: &str) -> bool {
    text.contains(&format!("{{{name}}}"))
}

fn end_text(plain: &mut String, part: &mut Vec<Piece>) {
    if !plain.is_empty() {
        part.push(Piece::Text(std::mem::take(plain)));
    }
}

fn field(name: &str, span: Span) -> Result<Field, String> {
    let (name, format) = name.split_once(':').unwrap_or((name, ""));
    if !format.is_empty() {
        return Err(format!(
            "has a format in `{{{name}:{format}}}`, which a field cannot have"
        ));
    }
    let mut steps = name.split('.').map(str::trim);
    let root = steps.next().unwrap_or_default();
    let ident = |step: &str| match step {
        "self" => Ok(Ident::new("self", span)),
        step => syn::parse_str::<Ident>(step)
            .or_else(|_| syn::parse_str(&format!("r#{step}")))
            .map(|mut ident: Ident| {
                ident.set_span(span);
                ident
            }),
    };
    let no_name = |_| match root {
        "" => "has braces without the name of an argument".to_owned(),
        _ => format!("has `{{{name}}}`, which is not the name of an argument"),
    };
    let root = ident(root).map_err(no_name)?;
    let members = steps.map(|step| match step.parse::<u32>() {
        Ok(index) => Ok(Member::Unnamed(Index { index, span })),
        Err(_) => ident(step).map(Member::Named),
    });
    let members: syn::Result<Vec<_>> = members.collect();
    let no_member = |_| format!("has `{{{name}}}`, which is not a field of an argument");
    Ok(Field {
        root,
        members: members.map_err(no_member)?,
    })
}
