//! What a function takes and returns, as far as a cache has to know.

use proc_macro2::{Span, TokenStream, TokenTree};
use quote::{ToTokens, quote};
use syn::{
    FnArg, GenericArgument, GenericParam, Ident, ItemFn, Pat, PatIdent, PathArguments, Receiver,
    ReturnType, Type, TypeReference,
};

/// One argument that has a type.
pub(crate) struct Argument {
    /// What it is called in the function that looks in the cache.
    pub(crate) ident: Ident,
    pub(crate) ty: Type,
    /// What its pattern binds: the names that keys can use.
    pub(crate) names: Vec<Ident>,
    /// The pattern, if it is more than a name.
    pub(crate) pattern: Option<Pat>,
}

impl Argument {
    /// Whether a load has to take along what is behind it.
    pub(crate) fn is_borrowed(&self) -> bool {
        matches!(&self.ty, Type::Reference(reference) if !is_static(reference))
    }

    /// A shared reference to it.
    pub(crate) fn by_ref(&self) -> TokenStream {
        let ident = &self.ident;
        match self.ty {
            Type::Reference(_) => quote!(#ident),
            _ => quote!(&#ident),
        }
    }
}

fn is_static(reference: &TypeReference) -> bool {
    let lifetime = reference.lifetime.as_ref();
    lifetime.is_some_and(|lifetime| lifetime.ident == "static")
}

/// Reads the arguments; an error for those that no cache can tell apart, or no load take along.
pub(crate) fn arguments(function: &ItemFn) -> syn::Result<(Option<Receiver>, Vec<Argument>)> {
    let (mut receiver, mut arguments) = (None, Vec::new());
    let mut errors = Errors::default();
    for (at, input) in function.sig.inputs.iter().enumerate() {
        match input {
            FnArg::Receiver(own) => {
                errors.note(check_receiver(own));
                receiver = Some(own.clone());
            }
            FnArg::Typed(typed) => {
                errors.note(check_type(&typed.ty, function.sig.asyncness.is_some()));
                match argument(at, &typed.pat, &typed.ty) {
                    Ok(argument) => arguments.push(argument),
                    Err(error) => errors.note(Err(error)),
                }
            }
        }
    }
    errors.or(()).map(|()| (receiver, arguments))
}

fn argument(at: usize, pattern: &Pat, ty: &Type) -> syn::Result<Argument> {
    let ty = ty.clone();
    let made = || Ident::new(&format!("__larder_argument_{at}"), Span::mixed_site());
    match pattern {
        Pat::Ident(PatIdent {
            by_ref: None,
            subpat: None,
            ident,
            ..
        }) => Ok(Argument {
            ident: ident.clone(),
            ty,
            names: vec![ident.clone()],
            pattern: None,
        }),
        Pat::Wild(_) => Ok(Argument {
            ident: made(),
            ty,
            names: Vec::new(),
            pattern: None,
        }),
        pattern => {
            let mut names = Vec::new();
            if matches!(ty, Type::Reference(_)) || !binds(pattern, &mut names) {
                return Err(syn::Error::new_spanned(
                    pattern,
                    "this pattern is too much for `#[cached]`: give the argument a name, and take \
                     it apart in the body",
                ));
            }
            Ok(Argument {
                ident: made(),
                ty,
                names,
                pattern: Some(pattern.clone()),
            })
        }
    }
}

/// Collects the names that a pattern binds; `false` for one that could not be matched by reference
/// as well.
fn binds(pattern: &Pat, names: &mut Vec<Ident>) -> bool {
    match pattern {
        Pat::Ident(name) if name.by_ref.is_none() && name.mutability.is_none() => {
            names.push(name.ident.clone());
            name.subpat.is_none()
        }
        Pat::Wild(_) | Pat::Rest(_) => true,
        Pat::Tuple(tuple) => tuple.elems.iter().all(|part| binds(part, names)),
        Pat::TupleStruct(tuple) => tuple.elems.iter().all(|part| binds(part, names)),
        Pat::Struct(fields) => fields.fields.iter().all(|field| binds(&field.pat, names)),
        _ => false,
    }
}

fn check_receiver(receiver: &Receiver) -> syn::Result<()> {
    let exclusive = match &*receiver.ty {
        Type::Reference(reference) => reference.mutability.is_some(),
        _ => false,
    };
    if exclusive {
        return Err(syn::Error::new_spanned(
            receiver,
            "a call that is answered from the cache changes nothing, so `#[cached]` takes no `&mut \
             self`; take `&self`",
        ));
    }
    Ok(())
}

/// An error for an argument of a type that cannot be cached by, or carried into a load.
fn check_type(ty: &Type, carried: bool) -> syn::Result<()> {
    let refuse = |why: &str| Err(syn::Error::new_spanned(ty, why));
    if has_impl_trait(ty.to_token_stream()) {
        return refuse(
            "`impl Trait` has no name, so the key cannot tell two types apart; give it one: \
             `fn f<T: Trait>(x: T)`",
        );
    }
    let Type::Reference(reference) = ty else {
        if carried && has_lifetime(ty.to_token_stream()) {
            return refuse(
                "this borrows, and a load may outlive the call that began it; take it by \
                 reference, `&T`, and the load takes a clone along, or take something that owns",
            );
        }
        return Ok(());
    };
    if reference.mutability.is_some() {
        return refuse(
            "a call that is answered from the cache changes nothing, so `#[cached]` takes no `&mut`",
        );
    }
    if !carried {
        return Ok(());
    }
    if matches!(*reference.elem, Type::TraitObject(_)) {
        return refuse(
            "a load may outlive the call that began it, and cannot clone a trait object; take \
             `Arc<dyn Trait>`",
        );
    }
    if has_lifetime(reference.elem.to_token_stream()) {
        return refuse(
            "what is behind this reference borrows, and a load may outlive the call that began \
             it; take something that owns",
        );
    }
    Ok(())
}

fn has_impl_trait(tokens: TokenStream) -> bool {
    tokens.into_iter().any(|token| match token {
        TokenTree::Ident(ident) => ident == "impl",
        TokenTree::Group(group) => has_impl_trait(group.stream()),
        _ => false,
    })
}

/// Whether a type names a lifetime other than `'static`, or leaves one out behind a `&`.
fn has_lifetime(tokens: TokenStream) -> bool {
    let mut tokens = tokens.into_iter().peekable();
    while let Some(token) = tokens.next() {
        let next_is_quote =
            |next: &TokenTree| matches!(next, TokenTree::Punct(quote) if quote.as_char() == '\'');
        let found = match &token {
            TokenTree::Group(group) => has_lifetime(group.stream()),
            TokenTree::Punct(punct) if punct.as_char() == '&' => {
                !tokens.peek().is_some_and(next_is_quote)
            }
            TokenTree::Punct(punct) if punct.as_char() == '\'' => {
                !matches!(tokens.peek(), Some(TokenTree::Ident(name)) if name == "static")
            }
            _ => false,
        };
        if found {
            return true;
        }
    }
    false
}

/// What a function returns.
pub(crate) struct Returned {
    /// The whole type, as it stands there.
    pub(crate) ty: Type,
    /// Whether it is a `Result`.
    pub(crate) fails: bool,
    /// Whether it has a word for "there is no such value".
    pub(crate) optional: bool,
    /// Whether the value is returned behind an `Arc`.
    pub(crate) by_arc: bool,
    /// The type of the values in the cache.
    pub(crate) value: TokenStream,
}

/// Reads the return type; an error for what cannot be kept.
pub(crate) fn returned(function: &ItemFn) -> syn::Result<Returned> {
    let ReturnType::Type(_, ty) = &function.sig.output else {
        return Err(syn::Error::new_spanned(
            &function.sig.ident,
            "this function returns nothing that could be cached",
        ));
    };
    let ty = ungrouped(ty);
    let refuse = |why: &str| Err(syn::Error::new_spanned(ty, why));
    if matches!(ty, Type::Tuple(tuple) if tuple.elems.is_empty()) || matches!(ty, Type::Never(_)) {
        return refuse("this function returns nothing that could be cached");
    }
    if has_impl_trait(ty.to_token_stream()) {
        return refuse("what is cached needs a type with a name, and `impl Trait` has none");
    }
    if has_lifetime(ty.to_token_stream()) {
        return refuse(
            "what is cached outlives the call, so it cannot borrow; return an owned value, or an `Arc`",
        );
    }
    let mut returned = Returned {
        ty: ty.clone(),
        fails: false,
        optional: false,
        by_arc: false,
        value: ty.to_token_stream(),
    };
    let mut inside = Some(ty.clone());
    if let Some(found) = argument_of(&inside, "Result") {
        returned.fails = true;
        returned.value = quote!(<#ty as ::larder::__macros::Fallible>::Value);
        inside = found;
    }
    if let Some(found) = argument_of(&inside, "Option") {
        returned.optional = true;
        inside = found;
    }
    if let Some(found) = argument_of(&inside, "Arc") {
        returned.by_arc = true;
        inside = found;
    }
    if let Some(value) = inside {
        returned.value = value.to_token_stream();
    }
    Ok(returned)
}

/// The first argument of a type whose path ends in `name`: `None` if it does not, and `Some(None)`
/// if it has no argument.
fn argument_of(ty: &Option<Type>, name: &str) -> Option<Option<Type>> {
    let Some(Type::Path(path)) = ty.as_ref().map(ungrouped) else {
        return None;
    };
    let last = path.path.segments.last()?;
    if last.ident != name {
        return None;
    }
    let PathArguments::AngleBracketed(arguments) = &last.arguments else {
        return Some(None);
    };
    let first = arguments.args.iter().find_map(|argument| match argument {
        GenericArgument::Type(ty) => Some(ungrouped(ty).clone()),
        _ => None,
    });
    Some(first)
}

fn ungrouped(ty: &Type) -> &Type {
    match ty {
        Type::Group(group) => ungrouped(&group.elem),
        Type::Paren(paren) => ungrouped(&paren.elem),
        ty => ty,
    }
}

/// The type and const parameters of a function: what tells its instances apart.
pub(crate) fn parameters(function: &ItemFn) -> Vec<(Ident, ParameterKind)> {
    let parameter = |parameter: &GenericParam| match parameter {
        GenericParam::Type(ty) => Some((ty.ident.clone(), ParameterKind::Type)),
        GenericParam::Const(number) => Some((number.ident.clone(), ParameterKind::Const)),
        GenericParam::Lifetime(_) => None,
    };
    function
        .sig
        .generics
        .params
        .iter()
        .filter_map(parameter)
        .collect()
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum ParameterKind {
    Type,
    Const,
}

/// Several mistakes at once: a user who mends one wants to know of the others.
#[derive(Default)]
pub(crate) struct Errors(Option<syn::Error>);

impl Errors {
    pub(crate) fn note(&mut self, result: syn::Result<()>) {
        let Err(error) = result else { return };
        match &mut self.0 {
            Some(errors) => errors.combine(error),
            none => *none = Some(error),
        }
    }

    pub(crate) fn add(&mut self, span: Span, message: String) {
        self.note(Err(syn::Error::new(span, message)));
    }

    /// The value, if there was no mistake.
    pub(crate) fn or<T>(self, value: T) -> syn::Result<T> {
        match self.0 {
            Some(errors) => Err(errors),
            None => Ok(value),
        }
    }
}
